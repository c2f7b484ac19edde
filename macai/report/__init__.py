"""What a training run leaves for people to look at: a page, a record of it, and other writers."""

from macai.report.folder import REPORT as REPORT
from macai.report.folder import write_report as write_report
from macai.report.recorded import recorded as recorded
