"Pipelines that turn a public source into the files a run reads: `python -m data_prep NAME`."
