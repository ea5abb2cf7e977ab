"""What a run leaves: the artifact with its model card, and where asked for the whole model. Imports all the others."""
