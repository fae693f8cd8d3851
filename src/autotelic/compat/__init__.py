"""The behaviour of other people's code, quirks included: for parity only."""
