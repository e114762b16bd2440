"""Reports of studies and runs: statistics, tables, figures, drawn images."""
