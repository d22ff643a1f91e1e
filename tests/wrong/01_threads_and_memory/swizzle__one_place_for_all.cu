// reason: sanitizer race
return row;
