"""podracer: the Podracer architectures, Anakin and Sebulba, in JAX."""
