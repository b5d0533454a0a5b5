"""Builders and strategies that several test folders share."""
