"""The stages of a run (crawl, extract, build, upload, measure, report) and two more operations (verify, withdraw).

One module and one public function each. A stage reads tables of the lake, writes tables of the lake, and returns a
summary of counts; it calls the packages that do the work.
"""
