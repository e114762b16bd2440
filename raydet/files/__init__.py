"""Files that others have written: text, json, COCO's json."""
