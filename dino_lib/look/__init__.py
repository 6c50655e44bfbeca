"""What people look at: figures, reports, the explorer page and videos.

A new figure or page belongs here. It draws what `measure` has computed.
"""
