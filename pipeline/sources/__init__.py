"""The door to the network and to other people's folders."""
