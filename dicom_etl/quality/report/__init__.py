"""The report of one dataset: from the quality tables to one HTML file, and the tables as CSV and Parquet."""
