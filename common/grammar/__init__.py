"""Grammars of structured answers, one definition for edge and cloud: JSON schemas, expressions, their limits"""
