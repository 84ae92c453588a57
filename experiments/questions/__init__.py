"""Questions of the demo corpus, files and public data sets, and the scoring of answers."""
