"""Who may do what: identities, scopes, tokens, quotas."""
