"""One photo from start to end: what a request may cost, the job, its files, refocusing. No torch at import."""
