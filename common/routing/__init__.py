"""Requests routed as wholes (mode `route`): cheap features of a prompt, and the small trained router over them"""
