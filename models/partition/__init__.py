"""Cuts a model into edge segments and a cloud tail."""
