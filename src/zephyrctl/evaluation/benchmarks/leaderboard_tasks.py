"""The tasks of the Open LLM Leaderboard, first version: metrics, numbers of shots and of questions, as it was run."""

from dataclasses import dataclass

HARNESS = "b281b0921b636bc36ad05c0b0b0763bd6dd43463"
"""The commit of EleutherAI's lm-evaluation-harness that the leaderboard ran."""


@dataclass(frozen=True)
class LeaderboardTask:
    """One task of the leaderboard."""

    task: str
    """Its name in lm-eval today; MMLU is a task for each subject."""
    folder: str
    """The folder of lm-eval's tasks that defines it."""
    metric: str
    shots: int
    questions: int
    """All that the leaderboard asked; of MMLU, over all subjects."""
    asked: str
    """The split whose questions are asked."""
    examples: str | None
    """The split that the shots come from."""


TASKS = {
    "arc": LeaderboardTask("arc_challenge", "arc", "acc_norm", 25, 1_172, asked="test", examples="train"),
    "hellaswag": LeaderboardTask(
        "hellaswag", "hellaswag", "acc_norm", 10, 10_042, asked="validation", examples="train"
    ),
    "mmlu": LeaderboardTask("mmlu", "mmlu/default", "acc", 5, 14_042, asked="test", examples="dev"),
    "truthfulqa": LeaderboardTask("truthfulqa_mc2", "truthfulqa", "mc2", 0, 817, asked="validation", examples=None),
}

_NAMES = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security
conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine
professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions
"""
SUBJECTS = tuple(_NAMES.split())
"""The 57 subjects of MMLU."""
