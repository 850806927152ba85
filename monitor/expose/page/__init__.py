"""The built-in page: what is published, as HTML for people without Grafana.

    routes   what is asked for, checked, answered          fleet   all models          model   one model
    story    alarms, answers and launches in words         draw    lines, strips, bars as SVG
    html     elements whose texts are always escaped       style   colours, fonts, layout; the script that keeps it fresh

It is made on the HTTP thread from one `Published` and nothing else, so that it says what `/metrics` and the API say.
Nothing is loaded from elsewhere, nothing is stored, nothing can be changed by it; without scripts it works all the same.
"""
