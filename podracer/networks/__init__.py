"""Neural networks in flax.linen: torsos, recurrent cores and heads."""
