"""The layer split against cloud only and a naive split, with the figures of the paper."""
