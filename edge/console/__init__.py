"""The console: a web page for people, to chat, compare modes and watch the edge; its files, and what serves them."""
