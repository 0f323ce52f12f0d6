"""A column of prompts in Spark, answered by mapInPandas.

OPENAI_API_KEY=… python examples/engines/spark_map_in_pandas.py
"""

from pyspark.sql import SparkSession

from chatpool import ChatPool

pool = ChatPool(max_workers=10, progress=False)  # pickled to each Python worker as its settings


def answer(frames):
    """Add answer and error to each frame of a partition."""
    for frame in frames:
        answers = pool.map(frame["prompt"])
        errors = [None if result.ok else str(result.error) for result in answers.results]
        yield frame.assign(answer=list(answers), error=errors)


if __name__ == "__main__":
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    prompts = [(f"What is {number} times {other}?",) for number in range(40) for other in range(5)]
    asked = spark.createDataFrame(prompts, "prompt string").repartition(8)
    for row in asked.mapInPandas(answer, "prompt string, answer string, error string").collect():
        print(row.prompt, row.answer, row.error or "", sep="\t")
    spark.stop()
