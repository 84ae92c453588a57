"""Fakes and helpers of the layer split"""
