"""A simulated archive whose every pixel is a known function of place, time and band."""
