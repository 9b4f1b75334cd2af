"""Where Earth Engine's login is looked for."""

#: Environment: path of a service account's key file, and the project that is asked and billed.
KEY = "TERRASHARD_EARTH_ENGINE_KEY"
PROJECT = "TERRASHARD_EARTH_ENGINE_PROJECT"
