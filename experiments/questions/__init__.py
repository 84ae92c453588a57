"""Questions of the demo corpus, files and public data sets; the scoring of answers: texts, and programs with tests"""
