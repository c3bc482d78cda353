-- 8. Urine.
SELECT icustay_id, seconds(charttime) AS charttime, itemid, value
FROM outputevents
WHERE itemid IN (SELECT itemid FROM items WHERE extract = 'uo') AND value IS NOT NULL AND icustay_id IS NOT NULL
ORDER BY icustay_id, charttime, itemid, value
