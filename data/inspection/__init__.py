"""`tumorlens data explore | check | split`."""
