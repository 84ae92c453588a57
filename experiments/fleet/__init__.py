"""Replays the drafts of many edges of several tenants against a few clouds: shares, verify times, memory"""
