"""The parts of `report/claims.py`: the rule (`judging`), what is compared (`figures`), and the claims by network."""
