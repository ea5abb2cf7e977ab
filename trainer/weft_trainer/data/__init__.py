"""From files of records to batches of tensors. Knows no model. Imports `config`."""
