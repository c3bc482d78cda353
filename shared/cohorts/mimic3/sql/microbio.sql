-- 2. Every microbiology sample, positive or not, in the file's order.
SELECT subject_id, hadm_id, seconds(charttime) AS charttime, seconds(chartdate) AS chartdate
FROM microbiologyevents
ORDER BY row_id
