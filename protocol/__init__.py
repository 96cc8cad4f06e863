"""What crosses a boundary: messages, events, the wire, and their bounds.

Standard library and msgspec only: this package is loaded on both sides of every wall.
"""
