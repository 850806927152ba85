"""The service: from records to decisions, to what people see, to a retraining job."""
