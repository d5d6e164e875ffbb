"""The way of the data, one module and one public function each: crawl, extract, build, upload, measure, report.

The only place that knows several packages. A stage reads tables of the lake, writes tables of the lake, and returns a
summary of counts.
"""
