"""Catalogues of the size of the real ones: every acquisition over land, made when asked for."""
