"""Pictures of one's own, before a training: found, examined, split. Loads no torch: `oneloop data` answers at once.

walk        what is in a folder; listing: class folders, and how a picture is opened; path_table: CSV and parquet tables of paths
image_table pictures that tables hold; parquet: parquet files of them; hub: data sets of the Hugging Face hub
decode      how an image file is decoded, also for launch/data
examine     each file once, in parallel; index: what was found, kept in the cache
split       train, validation and test, by content
survey      all of it together, as `oneloop data` shows it; page: the same as HTML
"""
