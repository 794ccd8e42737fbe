"""The networks: one thin adapter each. torch and its family are imported only here."""
