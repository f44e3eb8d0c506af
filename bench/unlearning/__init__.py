"""Every method on every task: the plan, the runs, their records and the report."""
