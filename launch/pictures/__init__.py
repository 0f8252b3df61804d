"""Pictures of one's own, before a training: found, examined, split. Loads no torch: `oneloop data` answers at once.

walk        what is in a folder; listing: class folders; path_table: CSV and parquet tables
decode      how an image file is decoded, also for launch/data
examine     each file once, in parallel; index: what was found, kept in the cache
split       train, validation and test, by content
survey      all of it together, as `oneloop data` shows it; page: the same as HTML
"""
