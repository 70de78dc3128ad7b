"""Who is who in a cluster: its CA, what it signs, and the folder and files that daemons and clients find it in.

`cryptography` is imported where something is signed or read, never by importing this package.
"""
