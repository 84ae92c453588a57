"""HumanEval: the ways that are compared, their measures, and each way beside cloud only"""
