"""What both ends of the protocol share: messages, statuses, channels."""
