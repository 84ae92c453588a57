"""What the edge knows of its clouds: their vocabularies, models and contexts; prompts in the token ids of both"""
