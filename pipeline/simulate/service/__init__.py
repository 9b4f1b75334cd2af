"""The archive on the network: item search, files by range, logins, faults."""
