"""What stays at the edge: requests that say so, and private words, for which a cloud gets placeholders"""
