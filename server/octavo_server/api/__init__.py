"""The HTTP side: the only importer of aiohttp's server. Parses, submits, streams; decides nothing about tokens."""
