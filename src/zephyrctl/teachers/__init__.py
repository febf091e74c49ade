"""Everything about paid calls: the client, its limits, the call log, prices and forecasts."""
