"""How many clients one cloud serves at a given speed: alone, with speculation of its own, and with drafts of edges"""
