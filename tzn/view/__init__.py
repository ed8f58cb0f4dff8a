"""``tzn view``: recordings, detections and annotations as one HTML page to look at and to correct.

A package beside :mod:`tzn.visualization`, which draws fixed pictures with matplotlib: this page needs no library at all,
is worked with in a browser, and its parts are HTML, CSS and JavaScript.
"""

from tzn.view.page import write_page
from tzn.view.sources import PageRecording, Sources, gather

__all__ = ["PageRecording", "Sources", "gather", "write_page"]
