"""From the pyramid to losses or boxes."""
