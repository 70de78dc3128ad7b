"""What must survive a killed agent apart from the memory itself."""
