"""Arrays in, numbers out: whether a stream still looks like its reference, and how far it moved.

    values --Reference.profile--> Profile (counts) --Ring--> windows of 1, 2, 4 ... 128 panes --Scan--> Scores

`binning` turns values into bins, `profile` holds their counts and the laws of adding them, `reference` is what "no
drift" means and the file it lives in, `scan` decides, `distances` and `tests` describe, `synthetic` makes seeded
streams to try all of it on. The one invariant: everything is a function of counts under one reference, so the order of
events, the batches they came in and the workers that counted them cannot change a result.

numpy and scipy only; nothing here knows of Kafka, files other than the reference's, clocks or the service.
"""
